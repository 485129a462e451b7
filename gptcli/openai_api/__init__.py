"""OpenAI's API as data: what bodies ask for, what answers look like; shared by `gptcli batch` and the server."""
