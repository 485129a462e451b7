"""The data and the progress of `gptcli train`."""
