"""`python -m minihra` is the command `minihra`."""

from minihra.cli import main

raise SystemExit(main())
