"""Feature files: image and text features as one ``.npz`` to pass around, read, written, converted, trained on."""
