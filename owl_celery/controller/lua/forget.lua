-- Drop fields that nobody has written to since they were read.
-- KEYS: hashes that share their fields. ARGV: field, its value in the first hash; field, value, ...
-- Returns the fields that were dropped.
local dropped = {}
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    for _, key in ipairs(KEYS) do
      redis.call('HDEL', key, ARGV[i])
    end
    dropped[#dropped + 1] = ARGV[i]
  end
end
return dropped
