"""The prompt of `gptcli chat`."""
