"""A pre-trained language model as the lab's third subject: few-shot tasks, trained on the spot."""
