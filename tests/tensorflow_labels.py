"""What somebody with TensorFlow alone does with an exported folder, as a script: FOLDER, frames.npy, OUTPUT.npz.

Labels [T, H, W] of the functions and of the serving signatures of the SavedModel, and of the signatures of TensorFlow
Lite files: the one that was exported, and one that is converted here. The state is fed back; in propagate mode the host
chooses the program of a frame, unless `serving_default` does.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf


def follow(run_fn, state, frames, manifest, has_choice):
    """Labels of all frames; `run_fn(signature, named inputs) -> named outputs`."""
    schedule, labels = manifest["schedule"], []
    state = {f"state_{name}": np.asarray(value) for name, value in state.items()}
    for frame in frames:
        given, name = {**state, "frame": frame[None]}, "serving_default"
        if schedule is not None and not has_choice:
            age = state["state_age"]
            is_key = bool(((age < 0) | (age + 1 >= schedule["interval"])).any())
            if schedule["is_learned"]:
                looked = run_fn("look", given)
                is_key |= bool((looked.pop("shares") > schedule["threshold"]).any())
                if not is_key:
                    given = {**state, **looked}
            name = "key" if is_key else "other"
        found = run_fn(name, given)
        labels.append(found["labels"][0])
        state = {key: found[key] for key in state}
    return np.stack(labels)


def lite(content):
    """The signatures of a TensorFlow Lite file; each takes the inputs that it names."""
    interpreter = tf.lite.Interpreter(model_content=content)
    listed = interpreter.get_signature_list()

    def run(name, given):
        return interpreter.get_signature_runner(name)(**{key: given[key] for key in listed[name]["inputs"]})

    return run


def main(folder, frames_file, output):
    """Writes the labels by the way they were made, and prints the names of the signatures."""
    folder, frames = pathlib.Path(folder), np.load(frames_file)
    manifest = json.loads((folder / "manifest.json").read_text())
    where, is_refining = str(folder / "savedmodel"), manifest["schedule"] is None
    model = tf.saved_model.load(where)
    state = model.initial_state()

    def signature(name, given):
        fn = model.signatures[name]
        taken = {key: tf.constant(given[key]) for key in fn.structured_input_signature[1]}
        return {key: value.numpy() for key, value in fn(**taken).items()}

    found = {"signature": follow(signature, state, frames, manifest, True)}
    converted = tf.lite.TFLiteConverter.from_saved_model(where).convert()
    for name, content in (("converted", converted), ("own", (folder / "model.tflite").read_bytes())):
        found[name] = follow(lite(content), state, frames, manifest, is_refining)
    if is_refining or not manifest["schedule"]["is_learned"]:
        labels, values = [], state
        for index, frame in enumerate(frames):
            is_key = not is_refining and index % manifest["schedule"]["interval"] == 0
            program = model.step if is_refining else model.key if is_key else model.other
            values, shown = program(values, frame[None])
            labels.append(shown.numpy()[0])
        found["function"] = np.stack(labels)
    np.savez(output, **found)
    print(json.dumps(sorted(model.signatures)))


if __name__ == "__main__":
    main(*sys.argv[1:])
