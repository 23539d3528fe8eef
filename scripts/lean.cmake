# Builds libllama and ggml only, which is all that the Python binding loads: a fifth of the compile time.
#
# llama-cpp-python forces LLAMA_BUILD_COMMON to ON, so -DLLAMA_BUILD_COMMON=OFF on the command line is overwritten.
# CMake includes this file at the vendored `project(llama.cpp)` call (CMAKE_PROJECT_<name>_INCLUDE), which comes
# after that line and before the option is read. The common library holds what llama.cpp's own programs share
# (argument parsing, downloads, chat templates in C++), and takes half of the build.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "libllama does not use it" FORCE)
