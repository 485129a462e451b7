"""The conversation of `gptcli chat`."""
