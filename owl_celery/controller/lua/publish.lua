-- Renew the lease and write values, only while we hold it.
-- KEYS: lease, then the keys to write. ARGV: our token, lease in milliseconds, then for each key
-- its value and its time to live in milliseconds (0: for ever).
-- Returns 1, or 0 when the lease is not ours any more; then nothing is written.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
for i = 2, #KEYS do
  local value, ttl = ARGV[2 * i - 1], tonumber(ARGV[2 * i])
  if ttl > 0 then
    redis.call('SET', KEYS[i], value, 'PX', ttl)
  else
    redis.call('SET', KEYS[i], value)
  end
end
return 1
