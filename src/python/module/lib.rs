//! The Python module as a shared library: its one function that Python looks for is in the library's `python`.

use calotype_library as _;
