#!/usr/bin/env bash
# Build llama-server, llama-bench and llama-batched-bench from the llama.cpp that is inside the sdist of the
# llama-cpp-python that we use, so that a benchmark compares programs and not versions.
# Prints the directory of the binaries on its last line. They find their libraries by RUNPATH: leave them in place.
set -euo pipefail

python="${PYTHON:-.venv/bin/python}"
version=$("$python" -c 'import importlib.metadata as m; print(m.version("llama-cpp-python"))')
home="${XDG_CACHE_HOME:-$HOME/.cache}/conclave/rivals/$version"
bin="$home/build/bin"
targets=(llama-server llama-bench llama-batched-bench)

if [ ! -e "$home/done" ]; then
  mkdir -p "$home"
  if [ ! -d "$home/source" ]; then
    "$python" -m pip download -q --no-deps --no-binary :all: -d "$home" "llama-cpp-python==$version" >&2
    rm -rf "$home/unpacked"
    mkdir "$home/unpacked"
    tar -xzf "$home"/llama_cpp_python-*.tar.gz -C "$home/unpacked" --strip-components=1
    mv "$home/unpacked/vendor/llama.cpp" "$home/source"
    rm -rf "$home/unpacked" "$home"/llama_cpp_python-*.tar.gz
  fi
  # No user interface (it would be fetched), no curl; the rest is what the wheel is built with.
  cmake -S "$home/source" -B "$home/build" -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >&2
  cmake --build "$home/build" --target "${targets[@]}" -j "$(nproc)" >&2
  touch "$home/done"
fi
echo "$bin"
