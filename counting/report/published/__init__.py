"""Published figures beside this project's: bills, memory, speeds."""
