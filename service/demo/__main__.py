"""`python -m service.demo`, which is `make demo`."""

import sys

from service.demo.show import main

sys.exit(main())
