"""Video clips: procedural streets, CamVid, tf.data pipelines."""
