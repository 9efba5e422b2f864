"""`python -m quartet`, which launchers such as torchrun can start: the same as the command `quartet`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, which `-m` puts there: a file called torch.py in it is no library
    from quartet.command import main

    main()
