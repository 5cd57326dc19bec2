#include "image.h"

#include <elf.h>

#include <cstdint>
#include <cstring>
#include <sstream>

namespace simt {
namespace {

constexpr uint32_t fatbin_magic = 0xba55ed50;
constexpr uint32_t fatbin_wrapper_magic = 0x466243b1;
// Toolkits from 13.0 on write the architecture one byte higher.
constexpr int first_version_with_moved_architecture = 8;
// From compute capability 9.0 on the driver keeps this much at the start of a block's shared memory,
// and cubins count it.
constexpr int reserved_shared_bytes = 1024;

bool starts_with(const std::string &text, const char *prefix) {
  return text.compare(0, std::strlen(prefix), prefix) == 0;
}

class Cubin {
 public:
  explicit Cubin(const char *data)
      : data_(data), header_(reinterpret_cast<const Elf64_Ehdr *>(data)) {
    sections_ = reinterpret_cast<const Elf64_Shdr *>(data + header_->e_shoff);
    names_ = data + sections_[header_->e_shstrndx].sh_offset;
    for (int i = 0; i < header_->e_shnum; i++) {
      if (sections_[i].sh_type != SHT_SYMTAB) continue;
      symbols_ = reinterpret_cast<const Elf64_Sym *>(data + sections_[i].sh_offset);
      symbol_names_ = data + sections_[sections_[i].sh_link].sh_offset;
    }
  }

  Image read() {
    image_.kind = Image::Kind::cubin;
    const uint32_t flags = header_->e_flags;
    const bool newer = header_->e_ident[EI_ABIVERSION] >= first_version_with_moved_architecture;
    image_.capability = int(newer ? flags >> 8 & 0xff : flags & 0xff);
    for (int i = 0; i < header_->e_shnum; i++) read_section(sections_[i]);
    return image_;
  }

 private:
  void read_section(const Elf64_Shdr &section) {
    const std::string name = names_ + section.sh_name;
    if (starts_with(name, ".text.")) image_.kernels[name.substr(6)];
    if (starts_with(name, ".nv.shared.") && !starts_with(name, ".nv.shared.reserved")) {
      const int reserved = image_.capability >= 90 ? reserved_shared_bytes : 0;
      image_.kernels[name.substr(11)].static_shared = int(section.sh_size) - reserved;
    }
    if (starts_with(name, ".nv.info")) {
      read_attributes(section, name.size() > 9 ? name.substr(9) : std::string());
    }
  }

  // Attributes: a byte of format, a byte of kind, and, in format 4, a size and as many bytes.
  void read_attributes(const Elf64_Shdr &section, const std::string &kernel) {
    constexpr int sized_format = 4, registers = 0x2f, parameter = 0x17, most_threads = 0x05;
    const char *next = data_ + section.sh_offset, *end = next + section.sh_size;
    while (next + 4 <= end) {
      const int format = next[0], kind = next[1];
      uint16_t size;
      std::memcpy(&size, next + 2, sizeof size);
      next += 4;
      if (format != sized_format) continue;
      uint32_t words[3] = {};
      std::memcpy(words, next, size < sizeof words ? size : sizeof words);
      if (kind == registers && symbols_ != nullptr) {
        image_.kernels[symbol_names_ + symbols_[words[0]].st_name].registers = int(words[1]);
      }
      if (kind == parameter) {
        image_.kernels[kernel].parameter_bytes[int(words[1] & 0xffff)] = int(words[2] >> 18);
      }
      if (kind == most_threads) {
        image_.kernels[kernel].most_threads = int(words[0] * words[1] * words[2]);
      }
      next += size;
    }
  }

  const char *data_;
  const Elf64_Ehdr *header_;
  const Elf64_Shdr *sections_;
  const char *names_;
  const Elf64_Sym *symbols_ = nullptr;
  const char *symbol_names_ = nullptr;
  Image image_;
};

Image read_ptx(const std::string &text) {
  Image image;
  image.kind = Image::Kind::ptx;
  const std::string entry = ".entry ";
  for (size_t at = text.find(entry); at != std::string::npos; at = text.find(entry, at)) {
    at += entry.size();
    const size_t end = text.find_first_of("( \t\n", at);
    image.kernels[text.substr(at, end - at)];
  }
  return image;
}

// Lines of a word and its value: "program", "architecture", "kernel".
Image read_source_image(const char *text) {
  Image image;
  image.kind = Image::Kind::from_source;
  std::istringstream lines(text + sizeof source_image_mark - 1);
  std::string word, value;
  while (lines >> word >> value) {
    if (word == "program") image.source_name = value;
    if (word == "architecture") image.capability = std::stoi(value);
    if (word == "kernel") image.kernels[value];
  }
  return image;
}

}  // namespace

Image read_image(const void *data) {
  const char *bytes = static_cast<const char *>(data);
  uint32_t magic;
  std::memcpy(&magic, bytes, sizeof magic);
  if (std::memcmp(bytes, ELFMAG, SELFMAG) == 0) return Cubin(bytes).read();
  if (std::strncmp(bytes, source_image_mark, sizeof source_image_mark - 1) == 0) {
    return read_source_image(bytes);
  }
  if (magic == fatbin_magic || magic == fatbin_wrapper_magic) {
    Image image;
    image.kind = Image::Kind::fatbin;
    return image;
  }
  const std::string text = bytes;  // PTX ends with a zero
  if (text.find(".version") != std::string::npos) return read_ptx(text);
  return {};
}

}  // namespace simt
