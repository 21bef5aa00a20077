#include "devices/bus/bus.h"
