"""What classify.py can be fine-tuned to: tasks, their tables and their networks."""
