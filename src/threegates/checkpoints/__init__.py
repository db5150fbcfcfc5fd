"""Where weights come from: manifests, lazy safetensors, aligned pairs."""
