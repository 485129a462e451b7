"""The views of `gptcli tokenize`."""
