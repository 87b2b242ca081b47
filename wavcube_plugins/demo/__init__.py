"""The demo: speech through the model and two SUPERB tasks through s3prl, from one command, with a report."""
