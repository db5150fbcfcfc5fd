"""The miniature lab: small models, trained on the spot, written as Hub-format checkpoints."""
