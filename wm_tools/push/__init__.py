"""`wm-push`: upload a checkpoint, a companion, a labelled dataset or labels."""
