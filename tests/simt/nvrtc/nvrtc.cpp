// A stand-in for libnvrtc. "Compiling" checks what can be checked without a compiler and returns an
// image that names the kernels; the stand-in driver finds their twins.
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "../driver/image.h"

enum nvrtcResult : uint32_t {
  NVRTC_SUCCESS = 0,
  NVRTC_ERROR_INVALID_INPUT = 3,
  NVRTC_ERROR_INVALID_PROGRAM = 4,
  NVRTC_ERROR_INVALID_OPTION = 5,
  NVRTC_ERROR_COMPILATION = 6,
};

struct _nvrtcProgram {
  std::string name, source;
  std::map<std::string, std::string> headers;
  std::string log, image;
};
typedef _nvrtcProgram *nvrtcProgram;

#define NVRTC_API extern "C" __attribute__((visibility("default"))) nvrtcResult

namespace {

constexpr int supported_architectures[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

std::string base_name(const std::string &path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

// The text with comments and continued lines resolved, so that each directive is one line.
std::string without_comments(const std::string &text) {
  std::string result;
  for (size_t i = 0; i < text.size(); i++) {
    if (text.compare(i, 2, "//") == 0) {
      i = std::min(text.find('\n', i), text.size());
      result += '\n';
    } else if (text.compare(i, 2, "/*") == 0) {
      i = std::min(text.find("*/", i + 2), text.size()) + 1;
      result += ' ';
    } else if (text.compare(i, 2, "\\\n") == 0) {
      i++;
    } else {
      result += text[i];
    }
  }
  return result;
}

std::string word_at(const std::string &text, size_t *at) {
  while (*at < text.size() && std::isspace(static_cast<unsigned char>(text[*at]))) ++*at;
  const size_t begin = *at;
  while (*at < text.size() &&
         (std::isalnum(static_cast<unsigned char>(text[*at])) || text[*at] == '_')) {
    ++*at;
  }
  return text.substr(begin, *at - begin);
}

class Compiler {
 public:
  explicit Compiler(nvrtcProgram program) : program_(program) {}

  bool compile() {
    read(program_->name, program_->source);
    return program_->log.empty();
  }
  const std::set<std::string> &kernels() const { return kernels_; }

 private:
  void report(const std::string &file, int line, const std::string &what) {
    program_->log += file + "(" + std::to_string(line) + "): error: " + what + "\n";
  }

  void read(const std::string &file, const std::string &raw) {
    if (!seen_.insert(file).second) return;
    const std::string text = without_comments(raw);
    int line = 1, depth = 0;
    for (size_t begin = 0; begin < text.size(); line++) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      read_line(file, line, text.substr(begin, end - begin), &depth);
      begin = end + 1;
    }
    if (depth != 0) report(file, line, "#if without #endif");
  }

  void read_line(const std::string &file, int line, const std::string &text, int *depth) {
    size_t at = text.find_first_not_of(" \t");
    if (at == std::string::npos) return;
    if (text[at] != '#') {
      find_kernel(text);
      return;
    }
    at++;
    const std::string directive = word_at(text, &at);
    if (directive == "if" || directive == "ifdef" || directive == "ifndef") ++*depth;
    if (directive == "endif") --*depth;
    // What stands under a condition is not judged: the conditions are not evaluated.
    if (directive == "error" && *depth == 0) report(file, line, "#error" + text.substr(at));
    if (directive == "include" && *depth == 0) include(file, line, text.substr(at));
  }

  void include(const std::string &file, int line, const std::string &rest) {
    const size_t open = rest.find_first_of("\"<");
    const size_t close = open == std::string::npos ? open : rest.find_first_of("\">", open + 1);
    if (close == std::string::npos) return report(file, line, "malformed #include");
    const std::string name = rest.substr(open + 1, close - open - 1);
    const auto header = program_->headers.find(name);
    if (header == program_->headers.end()) {
      return report(file, line, "could not open source file \"" + name + "\"");
    }
    read(name, header->second);
  }

  // KERNEL(threads, name, ... or KERNEL_RESIDENT(threads, blocks, name, ...
  void find_kernel(const std::string &text) {
    size_t at = text.find_first_not_of(" \t");
    const std::string macro = word_at(text, &at);
    if (macro != "KERNEL" && macro != "KERNEL_RESIDENT") return;
    for (int commas = macro == "KERNEL" ? 1 : 2; commas != 0; commas--) {
      at = text.find(',', at);
      if (at == std::string::npos) return;
      at++;
    }
    const std::string name = word_at(text, &at);
    if (!name.empty()) kernels_.insert(name);
  }

  nvrtcProgram program_;
  std::set<std::string> seen_, kernels_;
};

// The number in an option such as --gpu-architecture=sm_90a; 0 if it is none, -1 if it is not known.
int architecture_in(const std::string &option) {
  for (const char *prefix : {"--gpu-architecture=", "-arch="}) {
    const size_t length = std::strlen(prefix);
    if (option.compare(0, length, prefix) != 0) continue;
    const size_t digits = option.find_first_of("0123456789", length);
    const int number = digits == std::string::npos ? 0 : std::atoi(&option[digits]);
    for (int supported : supported_architectures) {
      if (number == supported) return number;
    }
    return -1;
  }
  return 0;
}

}  // namespace

NVRTC_API nvrtcVersion(int *major, int *minor) {
  if (major == nullptr || minor == nullptr) return NVRTC_ERROR_INVALID_INPUT;
  *major = 13;
  *minor = 0;
  return NVRTC_SUCCESS;
}

NVRTC_API nvrtcGetNumSupportedArchs(int *count) {
  *count = int(sizeof supported_architectures / sizeof supported_architectures[0]);
  return NVRTC_SUCCESS;
}

NVRTC_API nvrtcGetSupportedArchs(int *architectures) {
  std::memcpy(architectures, supported_architectures, sizeof supported_architectures);
  return NVRTC_SUCCESS;
}

extern "C" __attribute__((visibility("default"))) const char *nvrtcGetErrorString(nvrtcResult result) {
  switch (result) {
    case NVRTC_SUCCESS: return "NVRTC_SUCCESS";
    case NVRTC_ERROR_INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case NVRTC_ERROR_INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case NVRTC_ERROR_INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case NVRTC_ERROR_COMPILATION: return "NVRTC_ERROR_COMPILATION";
  }
  return "NVRTC_ERROR unknown";
}

NVRTC_API nvrtcCreateProgram(nvrtcProgram *program, const char *source, const char *name,
                             int header_count, const char *const *headers,
                             const char *const *include_names) {
  if (program == nullptr || source == nullptr || header_count < 0) return NVRTC_ERROR_INVALID_INPUT;
  *program = new _nvrtcProgram{name != nullptr ? name : "default_program", source, {}, {}, {}};
  for (int i = 0; i < header_count; i++) (*program)->headers[include_names[i]] = headers[i];
  return NVRTC_SUCCESS;
}

NVRTC_API nvrtcCompileProgram(nvrtcProgram program, int option_count, const char *const *options) {
  if (program == nullptr) return NVRTC_ERROR_INVALID_PROGRAM;
  program->log.clear();
  program->image.clear();
  int architecture = 75;  // what the real one takes if it is not told
  for (int i = 0; i < option_count; i++) {
    const int found = architecture_in(options[i]);
    if (found < 0) {
      program->log = std::string("nvrtc: error: invalid value for ") + options[i] + "\n";
      return NVRTC_ERROR_INVALID_OPTION;
    }
    if (found > 0) architecture = found;
  }
  Compiler compiler(program);
  if (!compiler.compile()) return NVRTC_ERROR_COMPILATION;
  program->image = simt::source_image_mark;
  program->image += "program " + base_name(program->name) + "\n";
  program->image += "architecture " + std::to_string(architecture) + "\n";
  for (const std::string &kernel : compiler.kernels()) program->image += "kernel " + kernel + "\n";
  return NVRTC_SUCCESS;
}

NVRTC_API nvrtcDestroyProgram(nvrtcProgram *program) {
  if (program == nullptr || *program == nullptr) return NVRTC_ERROR_INVALID_PROGRAM;
  delete *program;
  *program = nullptr;
  return NVRTC_SUCCESS;
}

namespace {

// Sizes count the terminating zero.
nvrtcResult size_of(const std::string &text, size_t *bytes) {
  if (bytes == nullptr) return NVRTC_ERROR_INVALID_INPUT;
  *bytes = text.size() + 1;
  return NVRTC_SUCCESS;
}

nvrtcResult copy_out(const std::string &text, char *target) {
  if (target == nullptr) return NVRTC_ERROR_INVALID_INPUT;
  std::memcpy(target, text.c_str(), text.size() + 1);
  return NVRTC_SUCCESS;
}

}  // namespace

NVRTC_API nvrtcGetProgramLogSize(nvrtcProgram program, size_t *bytes) {
  return program == nullptr ? NVRTC_ERROR_INVALID_PROGRAM : size_of(program->log, bytes);
}
NVRTC_API nvrtcGetProgramLog(nvrtcProgram program, char *log) {
  return program == nullptr ? NVRTC_ERROR_INVALID_PROGRAM : copy_out(program->log, log);
}

NVRTC_API nvrtcGetCUBINSize(nvrtcProgram program, size_t *bytes) {
  if (program == nullptr || program->image.empty()) return NVRTC_ERROR_INVALID_PROGRAM;
  return size_of(program->image, bytes);
}
NVRTC_API nvrtcGetCUBIN(nvrtcProgram program, char *image) {
  if (program == nullptr || program->image.empty()) return NVRTC_ERROR_INVALID_PROGRAM;
  return copy_out(program->image, image);
}
NVRTC_API nvrtcGetPTXSize(nvrtcProgram program, size_t *bytes) {
  return nvrtcGetCUBINSize(program, bytes);
}
NVRTC_API nvrtcGetPTX(nvrtcProgram program, char *image) { return nvrtcGetCUBIN(program, image); }
