/* Python's entry into an extension. Compiled for any CPU, so that a set that this CPU lacks is refused before
 * one of its instructions runs. */
#include "module.h"
#include "set.h"

#define JOIN(a, b) a##b
#define INIT(set) JOIN(PyInit__kernels_, set)

PyMODINIT_FUNC INIT(SET)(void);

PyMODINIT_FUNC INIT(SET)(void)
{
  if (set_lacks() == NULL)
    return module_create();
  return PyErr_Format(PyExc_ImportError, "these kernels need %s, which this CPU lacks", set_lacks());
}
