"""`python -m quartet`, which launchers such as torchrun can start: the same as the command `quartet`."""

from quartet.command import main

if __name__ == "__main__":
    main()
