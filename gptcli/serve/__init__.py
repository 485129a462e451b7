"""The server of `gptcli serve`: APIs over HTTP, and a page to chat on."""
