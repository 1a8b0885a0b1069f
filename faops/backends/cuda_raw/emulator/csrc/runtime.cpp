// The runtime: everything the wrappers call, and the loop over the blocks of a grid.
#include "launch.h"
