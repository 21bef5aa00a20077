#include "boot/boot.h"
