"""What `gptcli train` reads and shows."""
