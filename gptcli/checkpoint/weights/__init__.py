"""From tensors of any format on disk to weights, as recipes say, and back."""
