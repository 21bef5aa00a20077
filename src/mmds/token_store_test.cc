#include "mmds/token_store.h"

#include <gtest/gtest.h>

#include <set>

namespace mayfly {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;

TEST(TokenStore, token_is_known_until_it_expires) {
  TokenStore store;
  const std::string token = store.make(10, 5 * kSecond).value();
  EXPECT_TRUE(store.use(token, 5 * kSecond));
  EXPECT_TRUE(store.use(token, 15 * kSecond - 1));
  EXPECT_FALSE(store.use(token, 15 * kSecond));
}

TEST(TokenStore, whatever_was_not_made_here_is_unknown) {
  TokenStore store;
  const std::string token = store.make(10, 0).value();
  EXPECT_FALSE(store.use("", 0));
  EXPECT_FALSE(store.use(token.substr(1), 0));
  EXPECT_FALSE(store.use(token + "0", 0));
  std::string other = token;
  other.back() = other.back() == '0' ? '1' : '0';
  EXPECT_FALSE(store.use(other, 0));
  EXPECT_FALSE(TokenStore().use(token, 0));
}

TEST(TokenStore, lifetimes_have_limits) {
  TokenStore store;
  for (const std::uint32_t refused : {0U, 21'601U, UINT32_MAX}) {
    const auto made = store.make(refused, 0);
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code(), ErrorCode::kOutOfRange);
  }
  EXPECT_TRUE(store.make(1, 0));
  EXPECT_TRUE(store.make(21'600, 0));
}

TEST(TokenStore, tokens_differ) {
  TokenStore store;
  std::set<std::string> tokens;
  for (int index = 0; index < 1000; ++index) {
    tokens.insert(store.make(10, 0).value());
  }
  EXPECT_EQ(tokens.size(), 1000U);
}

TEST(TokenStore, number_is_bounded_and_the_least_used_goes_first) {
  TokenStore store;
  const std::string busy = store.make(1000, 0).value();
  const std::string forgotten = store.make(1000, 1).value();
  for (std::size_t index = 0; index < TokenStore::kMaxTokens - 1; ++index) {
    EXPECT_TRUE(store.use(busy, 2 + index));
    ASSERT_TRUE(store.make(1000, 2 + index));
  }
  EXPECT_EQ(store.size(), TokenStore::kMaxTokens);
  EXPECT_TRUE(store.use(busy, 1000));
  EXPECT_FALSE(store.use(forgotten, 1000));
}

TEST(TokenStore, expired_tokens_make_room) {
  TokenStore store;
  const std::string lasting = store.make(1000, 0).value();
  for (std::size_t index = 1; index < TokenStore::kMaxTokens; ++index) {
    ASSERT_TRUE(store.make(1, 1));
  }
  ASSERT_TRUE(store.make(10, 2 * kSecond));
  EXPECT_EQ(store.size(), 2U);
  EXPECT_TRUE(store.use(lasting, 2 * kSecond));
}

}  // namespace
}  // namespace mayfly
