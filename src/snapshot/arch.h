// The one door to what this room has of the processor's architecture.
#pragma once

#include "snapshot/x86_64/processor.h"
