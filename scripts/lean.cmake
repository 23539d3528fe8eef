# How llama.cpp is built for us. CMake includes this file at the vendored `project(llama.cpp)` call
# (CMAKE_PROJECT_<name>_INCLUDE), which comes before its options are read.

# libllama and ggml only, which is all that the Python binding loads: a fifth of the compile time. llama-cpp-python forces
# LLAMA_BUILD_COMMON to ON, so -DLLAMA_BUILD_COMMON=OFF on the command line is overwritten; here it is not. The common
# library holds what llama.cpp's own programs share (argument parsing, downloads, chat templates in C++), and takes half
# of the build.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "libllama does not use it" FORCE)

# Our own matrix products and our own attention on x86 (kernels/), which the linker puts before llama.cpp's: --wrap
# is GNU's and LLVM's on Linux. The target is made later, so this waits for the end of llama.cpp's own file.
function(conclave_add_kernels)
  if(TARGET ggml-cpu)
    target_sources(ggml-cpu PRIVATE "${CONCLAVE_KERNELS}/kernels.cpp" "${CONCLAVE_KERNELS}/product.cpp"
      "${CONCLAVE_KERNELS}/experts.cpp" "${CONCLAVE_KERNELS}/attention.cpp" "${CONCLAVE_KERNELS}/logits.cpp")
    target_link_options(ggml-cpu PRIVATE "LINKER:--wrap=ggml_cpu_extra_compute_forward"
      "LINKER:--wrap=ggml_compute_forward_flash_attn_ext")
  endif()
endfunction()
set(CONCLAVE_KERNELS "${CMAKE_CURRENT_LIST_DIR}/kernels" CACHE INTERNAL "")
if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  cmake_language(DEFER DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" CALL conclave_add_kernels)
endif()
