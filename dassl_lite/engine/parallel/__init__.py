"""Several processes of one run: the process group, shared batches, averaged gradients. Imports no other room."""
