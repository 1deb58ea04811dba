"""What each column of a row table holds, for those who write it (`row_table`) and the device programs that read it.

A head of a packed layer has codes where a plain one has numbers. Addresses are those of the head's own first slot or group;
0 stands for what is not there.
"""

from __future__ import annotations

KEYS = 0  # address of the first key, or of the first slot's key codes
VALUES = 1
LOG_MASS = 2
FIRST_SLOT = 3  # index in the layer's flat tensors
NUM_SLOTS = 4
IS_PACKED = 5  # 0 or 1
K_SCALE = 6
K_OFFSET = 7
V_SCALE = 8
V_OFFSET = 9
K_GLOBAL = 10
V_GLOBAL = 11
NUM_COLUMNS = 12
