"""How a line is typed at the prompt: keys, pastes, history, colours, the user's editor."""
