"""Make Ctrl-C end this process without a traceback. The fork server of a pool imports this module first.

Importing the other modules takes it seconds, if it compiles kernels. Afterwards it ignores Ctrl-C.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
