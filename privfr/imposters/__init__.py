"""Imposters: faces of nobody, made on the device, for those who hold only their owner's."""
