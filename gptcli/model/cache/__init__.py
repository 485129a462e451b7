"""What a decoder keeps of the tokens that it has seen."""
