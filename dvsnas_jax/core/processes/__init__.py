"""Several processes of one run: how they meet, agree, stop, and notice that one is lost."""
