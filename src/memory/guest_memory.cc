#include "memory/guest_memory.h"
