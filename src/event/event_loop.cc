#include "event/event_loop.h"
