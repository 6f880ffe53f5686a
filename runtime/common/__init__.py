"""What every other package stands on: arrays, files, text, the command line's frame, the machine."""
