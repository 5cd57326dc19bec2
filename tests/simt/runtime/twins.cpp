#include "twins.h"

#include <dirent.h>
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <vector>

#include "settings.h"

namespace simt {
namespace {

std::map<std::string, Twin> &twins() {
  static auto *twins = new std::map<std::string, Twin>;
  return *twins;
}

std::string directory_of_twins() {
  if (!settings().kernels.empty()) return settings().kernels;
  Dl_info info;
  if (dladdr(reinterpret_cast<void *>(&load_twins), &info) == 0) return "kernels";
  const std::string library = info.dli_fname;
  const size_t slash = library.rfind('/');
  return (slash == std::string::npos ? std::string() : library.substr(0, slash + 1)) + "kernels";
}

struct Library {
  const char *code;
  const char *begin, *end;
};

// Finds the library that `code` lies in.
int find_library(dl_phdr_info *info, size_t, void *data) {
  Library &library = *static_cast<Library *>(data);
  const char *begin = nullptr, *end = nullptr;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) &segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const char *first = reinterpret_cast<const char *>(info->dlpi_addr + segment.p_vaddr);
    begin = begin == nullptr ? first : std::min(begin, first);
    end = std::max(end, first + segment.p_memsz);
  }
  if (library.code < begin || library.code >= end) return 0;
  library.begin = begin;
  library.end = end;
  return 1;
}

}  // namespace

void load_twins() {
  const std::string directory = directory_of_twins();
  DIR *entries = opendir(directory.c_str());
  if (entries == nullptr) {
    std::fprintf(stderr, "simulator: no kernels in %s\n", directory.c_str());
    return;
  }
  std::vector<std::string> libraries;
  while (const dirent *entry = readdir(entries)) {
    const std::string name = entry->d_name;
    if (name.size() > 3 && name.compare(name.size() - 3, 3, ".so") == 0) {
      libraries.push_back(directory + "/" + name);
    }
  }
  closedir(entries);
  std::sort(libraries.begin(), libraries.end());
  for (const std::string &library : libraries) {
    if (dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr) {
      std::fprintf(stderr, "simulator: %s\n", dlerror());
    }
  }
}

const Twin *find_twin(const std::string &name) {
  const auto found = twins().find(name);
  return found == twins().end() ? nullptr : &found->second;
}

}  // namespace simt

extern "C" __attribute__((visibility("default"))) void simt_register(const simt_twin *registered) {
  simt::Library library{reinterpret_cast<const char *>(registered->run), nullptr, nullptr};
  dl_iterate_phdr(simt::find_library, &library);
  simt::Twin twin;
  static_cast<simt_twin &>(twin) = *registered;
  const char *slash = std::strrchr(registered->source, '/');
  twin.source_name = slash == nullptr ? registered->source : slash + 1;
  twin.library_begin = library.begin;
  twin.library_end = library.end;
  if (!simt::twins().emplace(twin.name, twin).second) {
    std::fprintf(stderr, "simulator: two kernels are called %s\n", twin.name);
  }
}
