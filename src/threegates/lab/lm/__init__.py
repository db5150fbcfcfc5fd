"""A pre-trained language model of the Llama shape as a subject: short answers, few-shot, with a verifier."""
