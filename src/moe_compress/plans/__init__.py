"""Plans as things to read and pass on: other projects' formats, and how close each choice was."""
