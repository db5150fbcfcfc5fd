"""What is printed in the paper and cannot be."""
