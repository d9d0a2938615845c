/* contract.h -- api.h for C. api.h itself may hold no directive, because cffi reads it too. */
#ifndef AIOFS_CONTRACT_H
#define AIOFS_CONTRACT_H

#include <stdint.h>

#include "api.h"

#endif
