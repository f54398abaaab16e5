"""The rival stacks: how others would build the scoring service, each in a folder with a stack.toml, built when asked for."""
