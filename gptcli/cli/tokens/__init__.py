"""The views and tasks of `gptcli tokenize`."""
