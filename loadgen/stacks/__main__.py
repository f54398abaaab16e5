"""`python -m loadgen.stacks list | build | check`: the rival stacks of this machine."""

from loadgen.stacks.commands import main

if __name__ == "__main__":
    main()
