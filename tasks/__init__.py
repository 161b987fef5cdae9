"""What models are trained for: pre-training's objectives, and the tasks of classify.py."""
